package policy

import (
	"context"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// results is a topdown.VirtualCache: it holds the results of rules in one evaluation by
// their references. OPA's own cache makes a map for each element of each reference. A
// decision has about ten rules, so a linear search is cheaper, and the next evaluation uses
// the memory again. If there are more than few holds, OPA's own cache takes over.
type results struct {
	few    []result
	terms  []*ast.Term // of the references in few
	frames []int       // where in few each frame after the first begins; "with" begins one
	many   topdown.VirtualCache
}

type result struct {
	ref  ast.Ref
	term *ast.Term // nil: undefined
}

const (
	fewResults = 32
	fewTerms   = 8 * fewResults
)

// reset removes all results and references to them.
func (r *results) reset() {
	clear(r.few)
	clear(r.terms)
	r.few, r.terms, r.frames, r.many = r.few[:0], r.terms[:0], r.frames[:0], nil
}

// frame returns the visible part of few.
func (r *results) frame() []result {
	if n := len(r.frames); n > 0 {
		return r.few[r.frames[n-1]:]
	}
	return r.few
}

// Get returns a result. It is nil and true if undefined, and nil and false if not evaluated yet.
func (r *results) Get(ref ast.Ref) (*ast.Term, bool) {
	frame := r.frame()
	for i := range frame {
		if sameRef(frame[i].ref, ref) {
			return frame[i].term, frame[i].term == nil
		}
	}
	if r.many != nil {
		return r.many.Get(ref)
	}
	return nil, false
}

// Put stores a result. OPA uses the memory of ref again, so ref is copied.
func (r *results) Put(ref ast.Ref, term *ast.Term) {
	frame := r.frame()
	for i := range frame {
		if sameRef(frame[i].ref, ref) {
			frame[i].term = term
			return
		}
	}
	if len(r.few) == fewResults || len(r.terms)+len(ref) > fewTerms {
		if r.many == nil {
			r.many = topdown.NewVirtualCache()
			for range r.frames {
				r.many.Push()
			}
		}
		r.many.Put(ref, term)
		return
	}
	if r.terms == nil {
		r.few, r.terms = make([]result, 0, fewResults), make([]*ast.Term, 0, fewTerms)
	}
	from := len(r.terms)
	r.terms = append(r.terms, ref...)
	r.few = append(r.few, result{r.terms[from:len(r.terms):len(r.terms)], term})
}

// Push begins an empty frame.
func (r *results) Push() {
	r.frames = append(r.frames, len(r.few))
	if r.many != nil {
		r.many.Push()
	}
}

// Pop ends the frame and removes its results.
func (r *results) Pop() {
	n := len(r.frames) - 1
	from := r.frames[n]
	clear(r.few[from:])
	r.few, r.frames = r.few[:from], r.frames[:n]
	if r.many != nil {
		r.many.Pop()
	}
}

// Keys returns the references with a value in the frame.
func (r *results) Keys() (refs []ast.Ref) {
	for _, x := range r.frame() {
		if x.term != nil {
			refs = append(refs, x.ref)
		}
	}
	if r.many != nil {
		refs = append(refs, r.many.Keys()...)
	}
	return refs
}

// sameRef compares from the end, since references have the same prefix (data.aid.policies).
func sameRef(a, b ast.Ref) bool {
	if len(a) != len(b) {
		return false
	}
	for i := len(a) - 1; i >= 0; i-- {
		if a[i] != b[i] && !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}

// noData is the store and the cache of an evaluation. It is empty, since all data comes
// from rules. Its only methods are for reading; others panic.
type noData struct{ storage.Store }

func (noData) Read(_ context.Context, _ storage.Transaction, at storage.Path) (any, error) {
	if len(at) == 0 {
		return map[string]any{}, nil
	}
	return nil, &storage.Error{Code: storage.NotFoundErr, Message: "no data"}
}
func (noData) Get(ast.Ref) ast.Value  { return nil }
func (noData) Put(ast.Ref, ast.Value) {}

package api

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types that all resources share.

// list is a page of a list.
type list[T any] struct {
	Data    []T     `json:"data" nullable:"false" doc:"The objects of this page."`
	HasMore bool    `json:"has_more" doc:"Whether there is another page after this one."`
	Next    *string `json:"next" doc:"The value of after for the next page; null on the last page."`
}

// listed returns a page of entries out of up to limit+1 of them.
func listed[T any](rows []T, limit int, cursor func(T) string) *paged[T] {
	l := list[T]{Data: rows}
	if len(rows) > limit {
		l.Data, l.HasMore = rows[:limit], true
		next := cursor(l.Data[limit-1])
		l.Next = &next
	}
	return &paged[T]{Body: l}
}

type paged[T any] struct{ Body list[T] }

type one[T any] struct {
	ETag string `header:"ETag" doc:"The version. Send it in a later If-Match."`
	Body T
}

// made is the response to a POST. It can be stored as JSON and replayed for an idempotency
// key.
type made[T any] struct {
	Location string `header:"Location" doc:"The path of the new object."`
	ETag     string `header:"ETag" doc:"The version. Send it in a later If-Match."`
	Replayed string `header:"Idempotency-Replayed" doc:"true if this response was replayed for the same Idempotency-Key."`
	Body     T
}

func (m *made[T]) replayed() { m.Replayed = "true" }

type nothing struct{}

// Pages are the parameters of a list.
type Pages struct {
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"The most objects to return."`
	After string `query:"after" pattern:"^[0-9]{1,18}\\.[a-z]{1,8}_[0-9A-Za-z_-]{1,50}$" patternDescription:"the next of the page before" doc:"The value of next in the page before. The list continues after it." example:"12.ag_01k0000000abcdefghjkmnpqrs"`
}

// place is an object's position in its list: the place of its transaction, in the order of
// the commits, and its id. An object that is created while a client reads the pages comes
// after all objects that were visible before, so no cursor has passed it.
type place struct {
	at int64
	id string
}

func (p place) String() string { return itoa(p.at) + "." + p.id }

// after returns the place in After. Validation has checked its form.
func (p Pages) after() place {
	at, id, _ := strings.Cut(p.After, ".")
	n, _ := strconv.ParseInt(at, 10, 64)
	return place{n, id}
}

// pageOf returns the page of rows after After. rows are in the order of their places.
func pageOf[A, B any](p Pages, rows []A, at func(A) place, show func(A) B) *paged[B] {
	after := p.after()
	rows = slices.DeleteFunc(rows, func(r A) bool {
		here := at(r)
		return here.at < after.at || here.at == after.at && here.id <= after.id
	})
	var l list[B]
	if len(rows) > p.Limit {
		rows, l.HasMore = rows[:p.Limit], true
		next := at(rows[p.Limit-1]).String()
		l.Next = &next
	}
	l.Data = each(rows, show)
	return &paged[B]{Body: l}
}

type ByID struct {
	ID string `path:"id" maxLength:"128" doc:"The object's id."`
}

// Conditional is the header of a PATCH or DELETE. The guard reads it; this type is for the
// description.
type Conditional struct {
	IfMatch string `header:"If-Match" doc:"Change the object only if this is its ETag." example:"\"1\""`
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// matches reports whether the caller's If-Match permits a change of that version.
// RFC 9110 section 13.1.1: a weak tag never matches.
func (c *caller) matches(version int64) error {
	if len(c.ifMatch) == 0 {
		return nil
	}
	for _, tag := range strings.Split(strings.Join(c.ifMatch, ","), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == etag(version) {
			return nil
		}
	}
	return &problem{
		Status: 412, Code: "changed", Message: "The object was changed since the version in If-Match.", Field: "If-Match",
		Fix: "Get the object again, check the changes, and send the patch with its new ETag, " + etag(version) + ".",
	}
}

// at returns a time for a response: UTC, or nil for the zero time, which is never.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// strs returns s, or an empty list for nil, since an empty list is [] in JSON.
func strs(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

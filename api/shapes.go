package api

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// The shapes that all resources share.

// list is a page of a list.
type list[T any] struct {
	Data    []T     `json:"data" nullable:"false" doc:"The page."`
	HasMore bool    `json:"has_more" doc:"Whether there is another page after this one."`
	Next    *string `json:"next" doc:"What to send as after for the next page; null on the last one."`
}

// listed makes a page of entries from up to limit+1 of them.
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
	ETag string `header:"ETag" doc:"The version, for a later If-Match."`
	Body T
}

// made is the response to a POST. It survives being written down as JSON, since that
// is how it is kept for its idempotency key.
type made[T any] struct {
	Location string `header:"Location" doc:"Where it is."`
	ETag     string `header:"ETag" doc:"The version, for a later If-Match."`
	Replayed string `header:"Idempotency-Replayed" doc:"true if this response was sent before, to the same Idempotency-Key."`
	Body     T
}

func (m *made[T]) replayed() { m.Replayed = "true" }

type nothing struct{}

// Pages are the parameters of a list.
type Pages struct {
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many at most."`
	After string `query:"after" pattern:"^[0-9]{1,18}\\.[a-z]{1,8}_[0-9A-Za-z_-]{1,50}$" patternDescription:"the next of the page before" doc:"The next of the page before: what follows it is listed." example:"12.ag_01k0000000abcdefghjkmnpqrs"`
}

// place is where an object stands in its list: the place that its transaction got, in
// the order of the commits, and its id. An object that is created while a list is
// walked stands behind all that could be seen before: no cursor has passed it.
type place struct {
	at int64
	id string
}

func (p place) String() string { return itoa(p.at) + "." + p.id }

// after is the place of After, whose form was checked against the description.
func (p Pages) after() place {
	at, id, _ := strings.Cut(p.After, ".")
	n, _ := strconv.ParseInt(at, 10, 64)
	return place{n, id}
}

// pageOf shows the rows that follow After, which are in the order of their places.
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
	ID string `path:"id" maxLength:"128" doc:"Its id."`
}

// Conditional is the header of a PATCH or DELETE. It is read by the guard, all of it; this
// is for the description.
type Conditional struct {
	IfMatch string `header:"If-Match" doc:"Change it only if its ETag is this." example:"\"1\""`
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// matches says whether the caller's If-Match permits a change of that version.
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
		Status: 412, Code: "changed", Message: "It was changed since the version that you saw.", Field: "If-Match",
		Fix: "Get it again, look at what changed, and send the patch with its new ETag, " + etag(version) + ".",
	}
}

// at is a time on the wire: UTC, or nothing for never.
func at(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// strs is never nil: an empty list is [] on the wire.
func strs(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

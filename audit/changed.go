package audit

import (
	"time"
)

// Changed is an entry of the management API: the actor and the changed object. It never has a
// secret. Before and After are digests of the object, not the object.
type Changed struct {
	Kind   string    `json:"kind"` // "agent.created", "key.revoked", …
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by Chain.Record
	Writer string    `json:"writer"` // set by Chain.Record

	Actor      Actor    `json:"actor"`
	RequestID  string   `json:"request_id"`
	ObjectKind string   `json:"object_kind"` // "agent", "key", …
	ObjectID   string   `json:"object_id"`
	AgentID    string   `json:"agent_id"` // the agent of the object, if it has one
	Fields     []string `json:"fields"`   // the changed fields
	Before     string   `json:"before"`   // digest, empty for a creation
	After      string   `json:"after"`    // digest, empty for a deletion
	Omitted    int64    `json:"omitted"`  // how many of Fields were left out
}

// Actor is the person or program that made a change.
type Actor struct {
	Kind string `json:"kind"` // "org_key", "bootstrap", …
	ID   string `json:"id"`
	Role string `json:"role"`
}

func (e Changed) Head() Head {
	return Head{Kind: e.Kind, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Changed) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Changed) Encode() []byte {
	o := begin(640, e.Kind, e.Time, e.Org, e.Writer, e.RequestID)
	o.actor(e.Actor)
	o.must("object_kind", e.ObjectKind, maxWord)
	o.must("object_id", e.ObjectID, maxID)
	o.str("agent_id", e.AgentID, maxID)
	e.Omitted += o.strs("fields", e.Fields, maxFields, maxID)
	o.str("before", e.Before, maxID)
	o.str("after", e.After, maxID)
	o.num("omitted", e.Omitted)
	return o.end()
}

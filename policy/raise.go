package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// MaxRaises is how many raises of an org may be in force at a time.
const MaxRaises = 1000

// Raise adds to one count of a policy's USD cap until a time in the count's period.
type Raise struct {
	ID, OrgID string
	PolicyID  string
	Limit     string // "daily_usd_cap" or "monthly_usd_cap"
	Per       string // as in Limit
	Subject   string // as in Limit
	Counter   string // Limit.Key
	Period    string // of the count
	NanoUSD   int64
	Capped    int64 // the cap with all raises in force, when this one was made
	Reason    string
	ActorID   string // of the org key
	CreatedAt time.Time
	EndsAt    time.Time
	Place     int64
}

// Raisable reports whether a limit of this name can be raised.
func Raisable(name string) bool { return name == "daily_usd_cap" || name == "monthly_usd_cap" }

// CapOf returns a cap of a policy as it counts for subjects, which are one for each name in per.
// Names that have no value, policy and org, have no subject. An empty per is the one of the only
// cap of this name. The error is an *Invalid about per or subjects, or about the policy.
func CapOf(p Policy, org, name, per string, subjects []string) (Limit, error) {
	d, err := parse(p.Document)
	if err != nil {
		return Limit{}, err
	}
	var pers []string
	var found []limit
	for _, l := range d.limits {
		if l.name != name {
			continue
		}
		written := strings.Join(l.per, "+")
		pers = append(pers, written)
		if per == "" || per == written {
			found = append(found, l)
		}
	}
	switch {
	case d.state != Enabled:
		return Limit{}, &Invalid{"policy_id", "is a policy that is not enabled", "enable it first"}
	case len(pers) == 0:
		return Limit{}, &Invalid{"limit", "is not a limit of this policy", "name a USD cap that the policy has"}
	case len(found) == 0:
		return Limit{}, &Invalid{"per", "is not what a " + name + " of this policy counts for", "write one of " + strings.Join(pers, ", ")}
	case len(found) > 1:
		return Limit{}, &Invalid{"per", "is missing, and the policy has several caps of this name", "write one of " + strings.Join(pers, ", ")}
	}
	l := found[0]
	counted := slices.DeleteFunc(slices.Clone(l.per), func(per string) bool { return per == perPolicy || per == perOrg })
	if len(subjects) != len(counted) {
		return Limit{}, &Invalid{"subjects", fmt.Sprintf("has %d values, and the cap counts for %d", len(subjects), len(counted)),
			"write one value for each of: " + strings.Join(counted, ", ")}
	}
	next := 0
	return l.count(p.ID, func(per string) string {
		switch per {
		case perPolicy:
			return ""
		case perOrg:
			return org
		}
		next++
		return subjects[next-1]
	}), nil
}

// Caps returns the caps of an enabled policy that can be raised, without subjects. A document
// that is not understood has none.
func Caps(p Policy) (out []Limit) {
	d, err := parse(p.Document)
	if err != nil || d.state != Enabled {
		return nil
	}
	for _, l := range d.limits {
		if Raisable(l.name) {
			out = append(out, Limit{Source: p.ID, Name: l.name, Value: l.max, Per: strings.Join(l.per, "+")})
		}
	}
	return out
}

const raiseColumns = `id, org_id, policy_id, limit_name, per, subject, counter, period, nano_usd, capped, reason, actor_id, created_at, ends_at, place`

func scanRaise(row pgx.CollectableRow) (r Raise, err error) {
	err = row.Scan(&r.ID, &r.OrgID, &r.PolicyID, &r.Limit, &r.Per, &r.Subject, &r.Counter, &r.Period, &r.NanoUSD, &r.Capped, &r.Reason, &r.ActorID, &r.CreatedAt, &r.EndsAt, &r.Place)
	r.CreatedAt, r.EndsAt = r.CreatedAt.UTC(), r.EndsAt.UTC()
	return r, err
}

// InsertRaise stores a raise.
func InsertRaise(ctx context.Context, tx pgx.Tx, r Raise) error {
	_, err := tx.Exec(ctx, `INSERT INTO limit_raises (id, org_id, policy_id, limit_name, per, subject, counter, period, nano_usd, capped, reason, actor_id, created_at, ends_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		r.ID, r.OrgID, r.PolicyID, r.Limit, r.Per, r.Subject, r.Counter, r.Period, r.NanoUSD, r.Capped, r.Reason, r.ActorID, r.CreatedAt, r.EndsAt)
	return doing(err, "storing a raise")
}

// RaiseByID returns a raise, or ErrNotFound.
func RaiseByID(ctx context.Context, tx pgx.Tx, id string) (Raise, error) {
	rs, err := raises(ctx, tx, `id = $1`, id)
	if err == nil && len(rs) == 0 {
		return Raise{}, ErrNotFound
	}
	if err != nil {
		return Raise{}, err
	}
	return rs[0], nil
}

// ListRaises returns at most limit raises after the place and the id, in the order of their
// places.
func ListRaises(ctx context.Context, tx pgx.Tx, place int64, id string, limit int) ([]Raise, error) {
	return raises(ctx, tx, `(place, id) > ($1, $2) ORDER BY place, id LIMIT $3`, place, id, limit)
}

// RaisesAt returns the raises that are in force at a time.
func RaisesAt(ctx context.Context, tx pgx.Tx, at time.Time) ([]Raise, error) {
	return raises(ctx, tx, `ends_at > $1 ORDER BY place, id LIMIT $2`, at, MaxRaises)
}

// RaisesSince returns the raises that were in force at some time since, those that end last
// first, at most limit.
func RaisesSince(ctx context.Context, tx pgx.Tx, since time.Time, limit int) ([]Raise, error) {
	return raises(ctx, tx, `ends_at > $1 ORDER BY ends_at DESC, id LIMIT $2`, since, limit)
}

func raises(ctx context.Context, tx pgx.Tx, which string, args ...any) ([]Raise, error) {
	rows, err := tx.Query(ctx, `SELECT `+raiseColumns+` FROM limit_raises WHERE org_id = aid_org() AND `+which, args...)
	if err != nil {
		return nil, doing(err, "listing raises")
	}
	rs, err := pgx.CollectRows(rows, scanRaise)
	return rs, doing(err, "listing raises")
}

package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// tables are those with an org's rows that the app may use, with the columns and values of
// a full row. $1 is the org, $2 a mark of its owner.
var tables = []struct{ name, columns, values string }{
	{"orgs", "", ""}, // made by the owner
	{"places", "org_id, last", "$1, length($2)"}, // before what makes its row
	{"org_keys", "org_id, id, name, role, hash", "$1, $2, $2, 'admin', $2"},
	{"nodes", "org_id, id, name, token_hash, spiffe_id", "$1, $2, $2, $2, 'spiffe://' || $2"},
	{"changes", "org_id, what", "$1, $2"},
	{"agents", "org_id, id, name, status, fingerprint, created_at, updated_at", "$1, $2, $2, 'active', $2, now(), now()"},
	{"agent_keys", "org_id, id, agent_id, name, hash, scopes, created_at", "$1, $2, $2, $2, $2, ARRAY[$2], now()"},
	// Of a namespace that the operator granted.
	{"agent_identities", "org_id, id, agent_id, name, kind, issuer, namespace, service_account, hash, created_at", "$1, $2, $2, $2, 'kubernetes', $2, $2, $2, $2, now()"},
	{"policies", "org_id, id, name, document, created_at, updated_at", "$1, $2, $2, $2, now(), now()"},
	{"policy_versions", "org_id, policy_id, version, change, name, document, actor_kind, actor_id, actor_role, at", "$1, $2, 1, 'created', $2, $2, $2, $2, $2, now()"},
	{"policy_dry_runs", "org_id, id, updated_at, result", "$1, $2, now(), $2"},
	{"limit_raises", "org_id, id, policy_id, limit_name, per, subject, counter, period, nano_usd, capped, reason, actor_id, created_at, ends_at", "$1, $2, $2, $2, $2, $2, $2, $2, 7, 7, $2, $2, now(), now()"},
	{"providers", "org_id, id, name, kind, base_url, created_at, updated_at", "$1, $2, $2, 'openai', $2, now(), now()"},
	{"provider_credentials", "org_id, provider_id, cluster, sealed, updated_at", "$1, $2, $2, $2, now()"},
	{"idempotency_keys", "org_id, actor, key, digest, status, sealed, created_at", "$1, $2, $2, $2, 200, $2, now()"},
	{"audit_heads", "org_id, seq, mac", "$1, 7, $2::text::bytea"},
	{"audit_writers", "org_id, writer, writer_seq", "$1, $2, 7"},
	{"audit_entries", "org_id, seq, time, kind, agent_id, writer, writer_seq, entry, epoch, prev_mac, mac", "$1, 7, now(), 'k', $2, $2, 7, $2::text::bytea, 1, '', ''"},
	{"budget_counts", "org_id, counter, period", "$1, $2, $2"},
	{"budget_reservations", "org_id, writer, writer_seq, request_id, limits, reserved_nano_usd, opened_at", "$1, $2, 7, $2, to_jsonb($2::text), 7, now()"},
	{"budget_events", "org_id, counter, period, threshold, max_nano_usd, charged_nano_usd, at", "$1, $2, $2, 50, 7, 7, now()"},
	{"sidecars", "org_id, node_id, writer, seen_at", "$1, $2, $2, now()"},
	{"usage_daily", "org_id, agent_id, day, provider, model", "$1, $2, '2026-07-01', $2, $2"},
	{"audit_trees", "org_id, incarnation, first_seq, root, edge", "$1, 7, 7, sha256($2::text::bytea), $2::text::bytea"},
	{"audit_tiles", "org_id, incarnation, level, n, nodes", "$1, 7, 0, 0, convert_to(rpad($2, 8192, $2), 'UTF8')"},
	{"audit_checkpoints", "org_id, incarnation, size, root, time, note", "$1, 7, 7, sha256($2::text::bytea), now(), $2::text::bytea"},
	{"audit_slots", "org_id, nonce, leaf", "$1, convert_to(rpad($2, 32, $2), 'UTF8'), sha256($2::text::bytea)"},
	{"audit_paths", "org_id, incarnation, size, tick, path", "$1, 7, 7, 7, $2::text::bytea"},
	{"audit_key_changes", "org_id, incarnation, role, size, old_kid, new_kid, old_signature, new_signature", "$1, 7, 'p256', 7, $2, $2, $2::text::bytea, $2::text::bytea"},
	{"audit_exports", "org_id, id, what, header, created_at", "$1, $2, $2::text::bytea, $2::text::bytea, now()"},
	{"usage_policies", "org_id, policy_id, agent_id, day, provider, model, team", "$1, $2, $2, '2026-07-01', $2, $2, $2"},
}

// fill gives an org one row in every table, each with its mark.
func fill(t *testing.T, db *store.DB, org, mark string) {
	t.Helper()
	storetest.InOrgAsOwner(t, org, func(tx pgx.Tx) error { // grants are the operator's
		_, err := tx.Exec(t.Context(), `INSERT INTO trust_namespaces (org_id, issuer, namespace) VALUES ($1, $2, $2)`, org, mark)
		return err
	})
	inOrg(t, db, org, func(tx pgx.Tx) error {
		for _, table := range tables[1:] {
			if _, err := tx.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s (%s) VALUES (%s)`, table.name, table.columns, castText(table.values)), org, mark); err != nil {
				return fmt.Errorf("%s: %w", table.name, err)
			}
		}
		return nil
	})
}

// castText gives bare parameters a type.
func castText(values string) string {
	return strings.ReplaceAll(strings.ReplaceAll(values, "$2", "$2::text"), "::text::text", "::text")
}

// everything of an org is all its rows as a superuser sees them.
func everything(t *testing.T, admin *pgx.Conn, org string) string {
	t.Helper()
	var all strings.Builder
	for _, table := range tables {
		for _, row := range column(t, admin, `SELECT to_jsonb(t)::text FROM `+table.name+` t WHERE org_id = $1 ORDER BY 1`, org) {
			fmt.Fprintln(&all, table.name, row)
		}
	}
	return all.String()
}

// Whatever statement runs for org A, however it is written, org B's rows are neither
// read nor changed. The statements are made from a seed, which a failure says.
func TestOrgsAreApart(t *testing.T) {
	statements := 4000
	if testing.Short() {
		statements = 400
	}
	db := storetest.Open(t)
	a, b := storetest.Org(t, db), storetest.Org(t, db)
	const markA, markB = "alpha", "bravo"
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	fill(t, db, a, markA)
	fill(t, db, b, markB)
	before := everything(t, admin, b)
	if n := strings.Count(before, "\n"); n < len(tables) {
		t.Fatalf("org B has %d rows, want one or more in each of %d tables:\n%s", n, len(tables), before)
	}

	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	s := statementMaker{r: r, a: a, b: b, markA: markA, markB: markB}
	var read, wrote, refused int
	for i := range statements {
		statement := s.next()
		err := db.InOrg(t.Context(), a, func(tx pgx.Tx) error {
			rows, err := tx.Query(t.Context(), statement)
			if err != nil {
				return err
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[*string])
			if err != nil {
				return err
			}
			for _, text := range got {
				read++
				// The name of org B is in some statements, so it is no proof; its
				// mark is in no statement that echoes.
				if text != nil && strings.Contains(*text, markB) {
					t.Errorf("seed %d, statement %d reads org B's %q:\n%s", seed, i, *text, statement)
				}
			}
			if n := rows.CommandTag().RowsAffected(); n > 0 && !rows.CommandTag().Select() {
				wrote++
			}
			return errBack // so that org A stays full
		})
		if err != errBack {
			refused++
			if c := code(err); c == "22012" { // division by zero: a row of B's was looked at
				t.Errorf("seed %d, statement %d gets at org B's rows by an error:\n%s", seed, i, statement)
			} else if c == "" || strings.HasPrefix(c, "XX") || strings.HasPrefix(c, "42") && c != "42501" {
				t.Fatalf("seed %d, statement %d is not one: %v\n%s", seed, i, err, statement)
			}
		}
	}
	if after := everything(t, admin, b); after != before {
		t.Errorf("seed %d: org B changed:\n%s\nit was:\n%s", seed, after, before)
	}
	if read == 0 || wrote == 0 || refused == 0 {
		t.Errorf("seed %d: %d rows read, %d statements wrote, %d were refused: one of them should not be 0", seed, read, wrote, refused)
	}
	t.Logf("%d statements: %d rows read, %d wrote, %d refused", statements, read, wrote, refused)
}

var errBack = fmt.Errorf("back")

// statementMaker makes statements of an attacker after another org's rows, and of a
// programmer who forgot about orgs.
type statementMaker struct {
	r                  *rand.Rand
	a, b, markA, markB string
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func (s *statementMaker) next() string {
	t := tables[s.r.IntN(len(tables))]
	switch s.r.IntN(6) {
	case 0:
		return `SELECT to_jsonb(t)::text FROM ` + t.name + ` t WHERE ` + s.where()
	case 1:
		u := tables[s.r.IntN(len(tables))]
		return pick(s.r,
			`SELECT (SELECT string_agg(to_jsonb(u)::text, ',') FROM `+u.name+` u WHERE `+s.where()+`) FROM `+t.name+` t`,
			`SELECT to_jsonb(u)::text FROM `+t.name+` t FULL JOIN `+u.name+` u ON t.org_id <> u.org_id OR u.org_id IS NULL`,
			`WITH x AS (SELECT * FROM `+u.name+` WHERE `+s.where()+`) SELECT to_jsonb(x)::text FROM x`,
			`SELECT to_jsonb(t)::text FROM `+t.name+` t UNION ALL SELECT to_jsonb(u)::text FROM `+u.name+` u WHERE `+s.where(),
			`SELECT max(org_id) || count(*) FROM (SELECT org_id FROM `+t.name+` UNION SELECT org_id FROM `+u.name+`) x WHERE org_id = '`+s.a+`'`,
			`SELECT query_to_xml('SELECT * FROM `+u.name+`', true, true, '')::text`,
		)
	case 2:
		return `UPDATE ` + t.name + ` t SET org_id = ` + pick(s.r, `'`+s.b+`'`, `org_id`, `(SELECT max(org_id) FROM orgs)`) + ` WHERE ` + s.where() + ` RETURNING to_jsonb(t)::text`
	case 3:
		return `DELETE FROM ` + t.name + ` t WHERE ` + s.where() + ` RETURNING to_jsonb(t)::text`
	case 4:
		if t.columns == "" {
			return `INSERT INTO orgs (org_id, name) VALUES ('` + s.b + `', 'x') ON CONFLICT DO NOTHING RETURNING org_id`
		}
		// B's own key, so that a conflict is one with B's row.
		mark := pick(s.r, s.markB, s.markA, "charlie")
		values := strings.NewReplacer("$1", `'`+pick(s.r, s.b, s.b, s.a)+`'`, "$2", `'`+mark+`'::text`).Replace(t.values)
		statement := `INSERT INTO ` + t.name + ` AS t (` + t.columns + `) VALUES (` + values + `)` + pick(s.r, ``, ` ON CONFLICT DO NOTHING`)
		if mark == s.markB {
			return statement + ` RETURNING org_id` // the rest is the statement's own
		}
		return statement + ` RETURNING to_jsonb(t)::text`
	default:
		if t.name == "audit_entries" || t.columns == "" {
			return `SELECT to_jsonb(t)::text FROM ` + t.name + ` t, LATERAL (SELECT t.org_id WHERE ` + s.where() + `) x`
		}
		return `MERGE INTO ` + t.name + ` t USING (SELECT * FROM ` + t.name + ` WHERE ` + s.where() + `) u ON t.org_id = u.org_id WHEN MATCHED THEN UPDATE SET org_id = '` +
			pick(s.r, s.a, s.b) + `'` + pick(s.r, ``, ` WHEN NOT MATCHED THEN DO NOTHING`)
	}
}

func (s *statementMaker) where() string {
	one := func() string {
		return pick(s.r,
			`true`, `org_id = '`+s.b+`'`, `org_id <> '`+s.a+`'`, `org_id IN ('`+s.a+`', '`+s.b+`')`, `org_id LIKE 'org%'`, `org_id > ''`, `org_id IS NOT NULL`,
			`1 / (CASE WHEN org_id = '`+s.b+`' THEN 0 ELSE 1 END) = 1`, `org_id = ANY (ARRAY(SELECT org_id FROM orgs))`, `EXISTS (SELECT FROM agents x WHERE x.org_id = '`+s.b+`')`,
			`length(org_id) / (CASE WHEN org_id = aid_org() THEN 1 ELSE 0 END) > 0`, `org_id COLLATE "C" >= 'org_'`,
		)
	}
	switch s.r.IntN(4) {
	case 0:
		return `(` + one() + ` OR ` + one() + `)`
	case 1:
		return one() + ` AND NOT (` + one() + `)`
	}
	return one()
}

// With no org set, or an empty one, every table is empty, and nothing can be put in.
func TestNoOrgNoRows(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	fill(t, db, org, "alpha")
	ctx := t.Context()
	for name, set := range map[string]string{
		"unset": `SELECT 1`, "empty": `SELECT set_config('aid.org', '', true)`, "reset": `RESET aid.org`, "another's": `SELECT set_config('aid.org', 'org_nobody', true)`,
	} {
		for _, role := range []string{store.AppRole, store.OwnerRole, store.AuditorRole} {
			conn := storetest.Connect(t, storetest.URL(t, role))
			for _, table := range tables {
				if name == "another's" && role == store.OwnerRole && table.name == "orgs" {
					continue // the owner makes orgs
				}
				tx, err := conn.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(ctx, set); err != nil {
					t.Fatal(err)
				}
				var n int
				if err := tx.QueryRow(ctx, `SELECT count(*) FROM `+table.name).Scan(&n); err != nil && code(err) != "42501" || n != 0 {
					t.Errorf("%s, org %s: %d rows of %s, %v", role, name, n, table.name, err)
				}
				tx.Rollback(context.Background()) //nolint:errcheck // it may be over
				if table.columns == "" {
					continue
				}
				if tx, err = conn.Begin(ctx); err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(ctx, set); err != nil {
					t.Fatal(err)
				}
				_, err = tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %s (%s) VALUES (%s)`, table.name, table.columns, castText(table.values)), org, "bravo")
				if code(err) != "42501" {
					t.Errorf("%s, org %s: a row in %s: %v", role, name, table.name, err)
				}
				tx.Rollback(context.Background()) //nolint:errcheck // it is over
			}
		}
	}
}

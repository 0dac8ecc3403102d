// Package api is the management API, for people and programs: agents and their keys,
// providers, policies, and reading the audit log. It is one HTTP handler. Its description
// (/openapi.json), its pages (/docs, /redoc), its validation and half of its tests are made
// from one table, routes.go.
//
//	route       which row of the table: method and path, once, by net/http's mux
//	identify    whose key: form and checksum first, then the hash in Postgres
//	permit      may the key's role do that
//	read        the body, bounded and strict
//	act         in one transaction of the org: the idempotency key, the change,
//	            and its entry in the audit log
//	answer      JSON; an error names the field and what to do
//
// What holds for every row, because only [New] mounts them and it adds all of it:
//
//   - Every row requires a key. Rows that are marked public do not, and return nothing
//     about any org.
//   - A key that is malformed, or an agent's, costs no lookup.
//   - Rows of another org do not exist: 404, never 403.
//   - A change that cannot be recorded does not happen.
//   - A secret is in the response that made it and in that response's replay. It is never
//     in a list, a log, a metric or an error.
//   - What is promised and not built yet returns 501, and changes nothing.
package api

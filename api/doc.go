// Package api is what people and programs manage the product with: agents and
// their keys, providers, policies, and reading the record. It is one HTTP handler;
// its description (/openapi.json), its pages (/docs, /redoc), its validation
// and half of its tests are made from one table, routes.go.
//
//	route       which row of the table: method and path, once, by net/http's mux
//	identify    whose key: form and checksum first, then the hash in Postgres
//	permit      may the key's role do that
//	read        the body, bounded and strict
//	act         in one transaction of the org: the idempotency key, the change,
//	            and its entry in the record
//	answer      JSON; a refusal names the field and what to do
//
// What holds for every row, because only [New] mounts them and it adds all of it:
//
//   - No row without a key, but for those marked public, which tell nothing of
//     any org.
//   - A key that is malformed, or an agent's, costs no look-up.
//   - Rows of another org do not exist: 404, never 403.
//   - A change that cannot be recorded does not happen.
//   - A secret leaves in the one answer that made it, and in that answer's replay;
//     never in a list, a log, a metric or an error.
//   - What is promised and not built yet says so (501), and changes nothing.
package api

// Package api is the management API: agents and their keys, providers, policies, and
// reading the audit log. It is one HTTP handler. One table, routes.go, defines the
// description (/openapi.json), the pages (/docs, /redoc), the validation and half of the
// tests.
//
//	route       find the row of the table by method and path, with net/http's mux
//	identify    check the key: form and checksum first, then the hash in Postgres
//	permit      check the key's role
//	read        read the body, with a size limit and strictly
//	act         in one transaction of the org: the idempotency key, the change,
//	            and its entry in the audit log
//	answer      JSON; an error names the field and the fix
//
// These rules hold for every row, because [New] adds them to each:
//
//   - Every row requires a key. Public rows are the exception, and return nothing about any
//     org.
//   - A malformed key or an agent's key is rejected without a database lookup.
//   - An object of another org does not exist: 404, never 403.
//   - A change that cannot be recorded does not happen.
//   - A secret is in the response that created it and in that response's replay. It is never
//     in a list, a log, a metric or an error.
//   - An operation that is promised and not built returns 501, and changes nothing.
package api

// Package xds distributes configuration: what Envoy and extproc receive, and the server and
// the client for both.
//
//	build.go, …   Build: an org's providers → listener, routes, clusters; pure
//	lint.go       Lint: the rules that every published snapshot must satisfy
//	server.go     Server: delta ADS for Envoys and sidecars, with data from Postgres
//	stream.go     one node's stream: its state, and the next response
//	client.go     Client: extproc's configuration, kept up to date by pushes
//	ingest.go     the audit records, on the same port and with the same identity
//
// # What a node receives
//
// A node authenticates with a join token or a client certificate. It receives the resources
// of its orgs and of no other. An org's Envoy configuration, providers, credentials and
// policies are wildcard subscriptions. A caller is subscribed to by name, which is the
// SHA-256 of its key. The response for an unknown name is that it is removed.
//
// # What is published
//
// A snapshot that breaks the rule "no decision, no route" is not published, and the last
// valid one stays. The same holds for a policy that cannot be compiled. Both are counted and
// logged.
//
// An Envoy receives new clusters before the routes to them, and loses old clusters after
// their routes. A sidecar receives credentials before providers, and the org last. So it
// decides with a complete configuration or not at all.
//
// # Why not the caches of go-control-plane
//
// This package uses its messages and types, but not its caches. The caches send no response
// for a name that does not exist, and copy a node's state for each push. A stream here is a
// loop that sends the difference between the wanted state and the sent state.
package xds

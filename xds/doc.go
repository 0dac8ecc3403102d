// Package xds distributes configuration: what Envoy and extproc receive, and the server and
// the client for both.
//
//	build.go, …   Build: an org's providers → listener, routes, clusters; pure
//	lint.go       Lint: what must hold of every snapshot before it is published
//	server.go     Server: delta ADS for Envoys and sidecars, fed by Postgres
//	stream.go     one node's stream: what it has, what it is sent next
//	client.go     Client: what extproc knows, kept up to date by pushes
//	ingest.go     the audit records, on the same port and with the same identity
//
// # What a node gets
//
// A node authenticates with a join token or a client certificate. It receives the resources
// of its orgs and of no other. An org's Envoy configuration, providers, credentials and
// policies are wildcard subscriptions. Callers are subscribed to one by one, by the SHA-256
// of their key. A name that does not exist is answered as removed.
//
// # What is published
//
// A snapshot without the rule "no decision, no route" is not published, and the last good
// one stays. The same holds for a policy that cannot be compiled. Both are counted and
// logged.
//
// Order: an Envoy receives new clusters before the routes that lead to them, and loses old
// ones after. A sidecar receives credentials before providers, and the org last. So it
// decides from a whole configuration or not at all.
//
// # Why not the caches of go-control-plane
//
// Its messages and its types are used, its caches are not. They give no response about a
// name that does not exist, and copy what a node holds for each push. A stream here is a
// loop over "what it should have, minus what it was sent".
package xds

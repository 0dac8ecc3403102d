// Package store opens Postgres, and owns what all that is kept there has in common:
// the schema and its migrations, who may see what, how a transaction gets its org,
// how changes are heard of, and, for a single machine, the server itself.
//
// It holds no queries: those live with their type, in the postgres.go of identity,
// provider, policy and audit.
//
// # Roles
//
// aid_owner owns the schema and migrates it. aid_app serves: it owns nothing, and
// row-level security binds it, as it does the owner. aid_auditor reads. None of them
// may bypass row security, and Open refuses a connection that may: then a query
// without its org finds nothing, instead of everything.
//
// # Migrations
//
// They run before a rollout and never at the start of a server (Migrate). A server
// works with its own schema and with later ones, so a migration only ever adds, and
// what it replaces goes in a later release.
package store

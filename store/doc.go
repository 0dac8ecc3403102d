// Package store opens Postgres and owns what all its tables share: the schema and its
// migrations, roles, the org of a transaction, and notifications. For a single machine it
// also runs the server.
//
// It has no queries. Those are beside their types, in postgres.go of identity, provider,
// policy and audit.
//
// # Roles
//
// aid_owner owns the schema and migrates it. aid_app serves: it owns nothing. Row-level
// security binds both. aid_auditor reads. None of them may bypass row security, and Open
// rejects a connection that may. So a query without its org finds nothing, instead of
// everything.
//
// # Migrations
//
// They run before a rollout and never at the start of a server (Migrate). A server works
// with its own schema and with later ones. So a migration only adds; removals go into a
// later release.
package store

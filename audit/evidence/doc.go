// Package evidence has the formats that prove the audit log to a reader who does not trust its
// operator: links, checkpoints, proofs and signed envelopes. It reads no database and no secret.
// So the control plane, which makes evidence, and `aid audit verify --offline`, which checks it,
// have one reader of each format.
//
//	Link         a row of the chain without its entry; the data of a leaf
//	Checkpoint   the size and root of a tree at a time, signed twice (C2SP tlog-checkpoint)
//	Envelope     a signed document (DSSE)
//	KeySet       the public keys, from a JWKS
//
// docs/evidence.md describes the formats with worked bytes. cli/ai_identity_verify.py is the
// independent second reader.
package evidence

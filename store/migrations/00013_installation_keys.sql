-- Proofs of the keys of this installation. A control plane with other keys notices it, also
-- before it serves a node. This is the one table without an organization: all of them have
-- the same keys. A proof does not contain its key.
--
-- +goose Up
CREATE TABLE installation_keys (
    name  text NOT NULL CHECK (name IN ('hmac', 'fernet')),
    epoch int  NOT NULL,            -- of an HMAC key; 0 for Fernet
    proof text NOT NULL,            -- hmac: derived from the key; fernet: a token of the newest key
    PRIMARY KEY (name, epoch)
);
REVOKE ALL ON installation_keys FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON installation_keys TO aid_app;

-- +goose Down
DROP TABLE installation_keys;

-- The certificate authority for intercepted connections. All organizations have the same one:
-- its keys are encrypted with --fernet-keys. A node with the role egress receives certificates.
--
-- +goose Up
CREATE TABLE egress_cas (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('root', 'intermediate')),
    parent      bigint REFERENCES egress_cas,
    certificate bytea NOT NULL,             -- DER
    sealed      text NOT NULL,              -- the key; empty once it is withdrawn
    state       text NOT NULL CHECK (state IN ('spread', 'signing', 'withdrawn')),
    changed_at  timestamptz NOT NULL        -- when it got its state
);
CREATE UNIQUE INDEX egress_cas_signing ON egress_cas (kind) WHERE state = 'signing';
REVOKE ALL ON egress_cas FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON egress_cas TO aid_app;

ALTER TABLE nodes DROP CONSTRAINT nodes_roles_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_roles_check CHECK (roles <@ ARRAY['envoy', 'extproc', 'egress']);

-- +goose Down
UPDATE nodes SET roles = array_remove(roles, 'egress');
ALTER TABLE nodes DROP CONSTRAINT nodes_roles_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_roles_check CHECK (roles <@ ARRAY['envoy', 'extproc']);
DROP TABLE egress_cas;

-- Kinds of credentials that each request of an agent must have, all at once.
--
-- +goose Up
ALTER TABLE agents ADD COLUMN required_identities text[] NOT NULL DEFAULT '{}' CHECK (required_identities <@ ARRAY['key', 'kubernetes', 'spiffe']);

-- +goose Down
ALTER TABLE agents DROP COLUMN required_identities;

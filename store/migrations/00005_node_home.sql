-- The home of a node: the one organization whose audit log counts the node's
-- requests of no known caller.
--
-- +goose Up

-- A node of one organization is at home there. One of several that exists already
-- has no home, since each of its rows would be one: make it anew to choose.
ALTER TABLE nodes ADD COLUMN home boolean NOT NULL DEFAULT true;
ALTER TABLE nodes ALTER COLUMN home SET DEFAULT false;

-- +goose Down
ALTER TABLE nodes DROP COLUMN home;

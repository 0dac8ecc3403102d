-- The time zone of an organization's days and months. A change holds from the first of
-- the next month.
--
-- +goose Up
ALTER TABLE orgs
    ADD COLUMN timezone text NOT NULL DEFAULT 'UTC',        -- an IANA name
    ADD COLUMN timezone_before text NOT NULL DEFAULT 'UTC', -- holds until timezone_from
    ADD COLUMN timezone_from timestamptz;                   -- null: timezone holds for all times
GRANT UPDATE (timezone, timezone_before, timezone_from) ON orgs TO aid_app;

-- +goose Down
REVOKE UPDATE (timezone, timezone_before, timezone_from) ON orgs FROM aid_app;
ALTER TABLE orgs DROP COLUMN timezone, DROP COLUMN timezone_before, DROP COLUMN timezone_from;

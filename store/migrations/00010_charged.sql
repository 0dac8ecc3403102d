-- What was charged under USD caps, beside what is known to have been spent.
--
-- +goose Up
ALTER TABLE usage_daily ADD COLUMN charged_nano_usd bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE usage_daily DROP COLUMN charged_nano_usd;

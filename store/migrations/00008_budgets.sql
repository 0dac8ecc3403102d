-- What is charged to the counts of USD caps. The sums are kept in the transaction that
-- appends the entries they come from.
--
-- +goose Up

-- A count's name has its period, so a count is never reset.
CREATE TABLE budget_counts (
    org_id           text NOT NULL REFERENCES orgs,
    counter          text NOT NULL,       -- as request.decided names it
    period           text NOT NULL,       -- such as 2026-11 or 2026-11-27
    charged_nano_usd bigint NOT NULL DEFAULT 0,
    charges          bigint NOT NULL DEFAULT 0, -- completed requests
    PRIMARY KEY (org_id, counter, period)
);

-- Decisions that reserved an amount and have no completion yet, or one that a recovery
-- made up. A real completion charges the counts and removes the row.
CREATE TABLE budget_reservations (
    org_id            text NOT NULL REFERENCES orgs,
    writer            text NOT NULL,      -- of the decision
    writer_seq        bigint NOT NULL,
    request_id        text NOT NULL,
    limits            jsonb NOT NULL,     -- the caps of the decision, with their counts
    reserved_nano_usd bigint NOT NULL,
    unknown           boolean NOT NULL DEFAULT false, -- charged, and how the request ended is not known
    charged_nano_usd  bigint NOT NULL DEFAULT 0,      -- then
    opened_at         timestamptz NOT NULL,
    PRIMARY KEY (org_id, writer, writer_seq, request_id)
);
CREATE INDEX budget_reservations_open ON budget_reservations (org_id, writer) WHERE NOT unknown;

-- Shares of a cap that its charges have reached, each once in a period.
CREATE TABLE budget_events (
    org_id           text NOT NULL REFERENCES orgs,
    counter          text NOT NULL,       -- the cap and its subject
    period           text NOT NULL,
    threshold        int NOT NULL,        -- per cent
    max_nano_usd     bigint NOT NULL,
    charged_nano_usd bigint NOT NULL,
    at               timestamptz NOT NULL,
    PRIMARY KEY (org_id, counter, period, threshold)
);

-- Sidecars that serve an org, and when each of them last asked for its counts.
CREATE TABLE sidecars (
    org_id  text NOT NULL REFERENCES orgs,
    node_id text NOT NULL,
    writer  text NOT NULL,                -- the process
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, node_id, writer)
);

-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['budget_counts', 'budget_reservations', 'budget_events', 'sidecars'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY org ON %I USING (org_id = aid_org()) WITH CHECK (org_id = aid_org())', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
    END LOOP;
END $$;
-- +goose StatementEnd
GRANT SELECT, INSERT, UPDATE ON budget_counts TO aid_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON budget_reservations, sidecars TO aid_app;
GRANT SELECT, INSERT ON budget_events TO aid_app;
GRANT SELECT ON budget_counts, budget_events TO aid_auditor;

-- +goose Down
DROP TABLE sidecars;
DROP TABLE budget_events;
DROP TABLE budget_reservations;
DROP TABLE budget_counts;

-- Lists are in the order of commits. An id has the time at which its transaction
-- began to work, so that a list by id shows late what commits late, behind a cursor
-- that has passed it.
--
-- +goose Up

-- The last place that an organization gave. Its row is locked from a transaction's
-- first new object to its commit: who gets a higher place commits later.
CREATE TABLE places (
    org_id text PRIMARY KEY REFERENCES orgs,
    last   bigint NOT NULL
);
ALTER TABLE places ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY org ON places USING (org_id = aid_org()) WITH CHECK (org_id = aid_org());
REVOKE ALL ON places FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON places TO aid_app;

-- One place for each transaction: its objects stand in the order of their ids. A
-- place for each would update the row as often as a bulk load has objects.
-- +goose StatementBegin
CREATE FUNCTION aid_place() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE given text := current_setting('aid.place', true); -- "PLACE ORG" of this transaction
BEGIN
    IF split_part(given, ' ', 2) = NEW.org_id THEN
        NEW.place := split_part(given, ' ', 1);
        RETURN NEW;
    END IF;
    INSERT INTO places AS p (org_id, last) VALUES (NEW.org_id, 1)
        ON CONFLICT (org_id) DO UPDATE SET last = p.last + 1 RETURNING p.last INTO NEW.place;
    PERFORM set_config('aid.place', NEW.place || ' ' || NEW.org_id, true);
    RETURN NEW;
END $$;
-- +goose StatementEnd

-- What is there already keeps the order of its ids, before all that comes.
-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['org_keys', 'nodes', 'agents', 'agent_keys', 'policies', 'providers'] LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN place bigint NOT NULL DEFAULT 0', t);
        EXECUTE format('CREATE TRIGGER placed BEFORE INSERT ON %I FOR EACH ROW EXECUTE FUNCTION aid_place()', t);
    END LOOP;
END $$;
-- +goose StatementEnd
CREATE INDEX agents_place ON agents (org_id, place, id);
CREATE INDEX agent_keys_place ON agent_keys (org_id, agent_id, place, id);
DROP INDEX agent_keys_agent;

-- +goose Down
CREATE INDEX agent_keys_agent ON agent_keys (org_id, agent_id, id);
DROP INDEX agent_keys_place;
DROP INDEX agents_place;
-- +goose StatementBegin
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['org_keys', 'nodes', 'agents', 'agent_keys', 'policies', 'providers'] LOOP
        EXECUTE format('DROP TRIGGER placed ON %I', t);
        EXECUTE format('ALTER TABLE %I DROP COLUMN place', t);
    END LOOP;
END $$;
-- +goose StatementEnd
DROP FUNCTION aid_place();
DROP TABLE places;

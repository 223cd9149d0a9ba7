-- Who was given each lease, and whoever wrote to a row under somebody else's. Every daemon process says its name in
-- `chaos.holder`. Not seen: a process that settles an old attempt under a newer lease of its own, and writes to rows that
-- nobody holds. Cancelling what is in flight would be called wrong; nobody does that here. Written in the daemons' own transactions: what a crash forgets of one it forgets of the other.
CREATE TABLE chaos_lease (row_id bigint, token uuid, holder text, PRIMARY KEY (row_id, token));
CREATE TABLE chaos_settlement (row_id bigint, token uuid, holder text, wrong text);

CREATE FUNCTION chaos_hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    name text := coalesce(current_setting('chaos.holder', true), 'nobody');
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.lease_token IS NOT NULL THEN
        IF NEW.lease_token IS DISTINCT FROM OLD.lease_token THEN
            IF OLD.lease_expires_at > now() THEN
                INSERT INTO chaos_settlement VALUES (OLD.id, OLD.lease_token, name, 'claimed by ' || name || ' under a live lease');
            END IF;
            INSERT INTO chaos_lease VALUES (NEW.id, NEW.lease_token, name);
        END IF;
    ELSIF OLD.lease_token IS NOT NULL THEN
        -- What is over may be swept by anybody, once its horizon has passed.
        INSERT INTO chaos_settlement
        SELECT OLD.id, OLD.lease_token, name,
               CASE WHEN l.holder IS DISTINCT FROM name
                         AND NOT (TG_OP = 'UPDATE' AND OLD.lease_expires_at <= now() AND OLD.retry_until <= now())
                    THEN format('settled by %s, held by %s', name, l.holder) END
        FROM (SELECT) one LEFT JOIN chaos_lease l ON l.row_id = OLD.id AND l.token = OLD.lease_token;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_hold AFTER UPDATE OR DELETE ON taskbell.outbox FOR EACH ROW EXECUTE FUNCTION chaos_hold();

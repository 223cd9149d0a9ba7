-- Circuits by what they do, where something is owed.
SELECT count(*) FILTER (WHERE closed_until IS NULL AND recovered IS NULL),
       count(*) FILTER (WHERE closed_until IS NOT NULL AND NOT probing),
       count(*) FILTER (WHERE probing),
       count(*) FILTER (WHERE recovered IS NOT NULL)
FROM taskbell.circuit c
WHERE EXISTS (SELECT FROM taskbell.outbox o
              WHERE o.lane = c.lane AND o.account_id = c.account_id
                AND o.lane IS NOT NULL AND o.available_at IS NOT NULL)

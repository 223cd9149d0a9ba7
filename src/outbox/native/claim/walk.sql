-- Everywhere: along the index, from one destination and account to the next that has rows. Places that are known
-- stand on the way, whether they have any or not, and are entered behind what was seen there: PostgreSQL would
-- read past all that is dead before the first row.
-- $14 and $15 lane and account after which it starts (null: at the first)
-- $16 lanes, $17 accounts there, $18 the due time of the first row that matters (null: any): known places beyond
-- the start, in the order of the index
WITH RECURSIVE tour AS (
    SELECT coalesce($14::text, '') COLLATE "C" AS lane, coalesce($15::text, '') COLLATE "C" AS account_id,
           NULL::timestamptz AS since, 0::bigint AS n, 0 AS passed
    UNION ALL
    SELECT coalesce(between.lane, known.lane), coalesce(between.account_id, known.account_id),
           CASE WHEN between.lane IS NULL THEN ($18::timestamptz[])[t.passed + 1] ELSE between.available_at END,
           t.n + 1, t.passed + CASE WHEN between.lane IS NULL THEN 1 ELSE 0 END
    FROM tour t
    CROSS JOIN LATERAL (
        SELECT ($16::text[])[t.passed + 1] AS lane, ($17::text[])[t.passed + 1] AS account_id
    ) known
    LEFT JOIN LATERAL (
        -- The first row there is: whoever takes rows need not read what is dead before it once more.
        SELECT o.lane, o.account_id, o.available_at FROM taskbell.outbox o
        WHERE o.lane IS NOT NULL AND o.available_at IS NOT NULL
          AND (o.lane, o.account_id) > (t.lane, t.account_id)
          -- Every lane begins with a letter.
          AND (o.lane, o.account_id) < (coalesce(known.lane, '~'), coalesce(known.account_id, ''))
        ORDER BY o.lane, o.account_id, o.available_at LIMIT 1
    ) between ON true
    WHERE t.n < $9::bigint AND coalesce(between.lane, known.lane) IS NOT NULL
), walk AS (
    SELECT lane, account_id, since, n FROM tour WHERE n > 0
), probe AS (
    -- Locked, so that of several daemons one probes.
    SELECT c.lane, c.account_id FROM taskbell.circuit c
    WHERE c.closed_until <= now() FOR UPDATE SKIP LOCKED

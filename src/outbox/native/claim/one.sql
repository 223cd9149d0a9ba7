-- The single row that is due at one place: as a rule that is what a bell is about, and it takes a third of the time of
-- rows.sql. Nothing is taken where there is more, or where the place recovers: `more` says so. After it come
-- lease.sql and shown.sql.
-- $4 lane, $5 account there, $6 whether the row may have failed before, $7 the due time of the first row that
-- matters (null: any)
WITH circuit AS (
    SELECT closed_until, recovered FROM taskbell.circuit WHERE lane = $4 AND account_id = $5
), first AS (
    SELECT o.ctid, o.observed FROM taskbell.outbox o
    WHERE o.lane = $4 AND o.account_id = $5
      AND o.available_at >= coalesce($7::timestamptz, '-infinity') AND o.available_at <= now()
      AND (o.lease_expires_at IS NULL OR o.lease_expires_at <= now())
      AND (o.retry_until IS NULL OR o.retry_until > now())
      AND ($6::boolean OR o.attempt_count = 0)
      AND NOT EXISTS (SELECT FROM circuit WHERE closed_until IS NOT NULL OR recovered IS NOT NULL)
    ORDER BY o.available_at, o.id
    LIMIT 2 FOR UPDATE SKIP LOCKED
), visited AS (
    SELECT false AS all, $4::text AS lane, $5::text AS account_id, NULL::bigint AS recorded,
           (SELECT count(*) FROM first) > 1 OR EXISTS (SELECT FROM circuit WHERE recovered IS NOT NULL) AS more
), due AS (
    SELECT first.ctid, first.observed, false AS probing, NOT visited.more AS fits FROM first, visited

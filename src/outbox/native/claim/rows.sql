-- Takes due rows under a lease, going round the lanes: `walk` visits one destination and account after
-- the other, and each gives what it has room for, so that no backlog of one is read past for the sake
-- of another. It stands before this text: walk.sql or known.sql. After it come lease.sql, probe.sql, shown.sql.
--
-- A lane whose circuit is closed is passed over; once its pause is over one claim, of one daemon,
-- takes a single row to probe it. A lane that recovers gets more room with every success.
--
-- $4 rows, $5 rows per lane, $6 lanes in flight, $7 how many there, $8 rows at most that failed before,
-- $9 places at most to visit, $10 bytes of documents, $11 bytes at most for one lane,
-- $12 how many of those each of the lanes in flight has, $13 rows of one lane to look at
), open AS (
    -- What may take rows now: its circuit lets some through, and its lane has room.
    SELECT w.lane, w.account_id, w.since, w.n, probe.lane IS NOT NULL AS probing,
           least(CASE WHEN probe.lane IS NOT NULL THEN 1 ELSE c.recovered + 1 - there.n END, lane_room) AS room, lane_room,
           $11::bigint - coalesce(busy.bytes, 0) AS lane_bytes, count(*) OVER (PARTITION BY w.lane) AS accounts
    FROM walk w
    LEFT JOIN unnest($6::text[], $7::bigint[], $12::bigint[]) AS busy(lane, n, bytes) USING (lane)
    LEFT JOIN taskbell.circuit c USING (lane, account_id)
    LEFT JOIN probe USING (lane, account_id)
    CROSS JOIN LATERAL (SELECT least($5::bigint - coalesce(busy.n, 0), $13::bigint) AS lane_room) lane
    -- What a place that recovers has in flight stands, as a rule, before its other rows. Nothing is read of others.
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE first.lease_expires_at > now()) AS n
        FROM (
            SELECT o.lease_expires_at FROM taskbell.outbox o
            WHERE c.recovered IS NOT NULL
              AND o.lane = w.lane AND o.account_id = w.account_id AND o.available_at IS NOT NULL
            ORDER BY o.available_at, o.id LIMIT coalesce(c.recovered + 1, 0)
        ) first
    ) there
    WHERE lane_room > 0 AND (c.closed_until IS NULL OR probe.lane IS NOT NULL)
      AND there.n <= coalesce(c.recovered, 0)
), running AS (
    -- Several accounts share a destination and its limit: its seats are drawn by lot among those that
    -- have something due. Reading a row of each costs less than locking what then finds no seat.
    SELECT lane, account_id, since, n, probing, lane_bytes, seat,
           least(room, lane_room / count(*) OVER same + (seat <= lane_room % count(*) OVER same)::integer) AS room
    FROM (
        SELECT open.*, row_number() OVER (PARTITION BY lane ORDER BY random()) AS seat
        FROM open
        WHERE accounts = 1 OR EXISTS (
            SELECT FROM taskbell.outbox o
            WHERE o.lane = open.lane AND o.account_id = open.account_id
              AND o.available_at >= coalesce(open.since, '-infinity') AND o.available_at <= now()
              AND (o.lease_expires_at IS NULL OR o.lease_expires_at <= now())
              AND (o.retry_until IS NULL OR o.retry_until > now())
              AND ($8::bigint > 0 OR o.attempt_count = 0 OR open.probing)
        )
    ) seated
    WHERE seat <= lane_room
    WINDOW same AS (PARTITION BY lane)
), due AS (
    -- The first is taken whatever its size: what is larger than a lane's share counts as that. Of a lane's accounts
    -- each gives its first before one gives its second.
    SELECT drawn.*, may AND sum(weight) FILTER (WHERE may) OVER (ORDER BY nth, n) - weight < $10::bigint AS fits
    FROM (
        SELECT fitted.*,
               lane_fits AND (NOT again OR count(*) FILTER (WHERE again AND lane_fits) OVER (ORDER BY lot) <= $8::bigint) AS may
        FROM (
            SELECT ranked.*, sum(weight) OVER (PARTITION BY lane ORDER BY nth, seat) - weight < lane_bytes AS lane_fits
            FROM (
                SELECT taken.*, least(bytes, $11::bigint) AS weight,
                       -- Where all may go there is nothing to draw, nor to sort.
                       CASE WHEN $8::bigint < $4::bigint THEN random() ELSE 0 END AS lot,
                       row_number() OVER (PARTITION BY n ORDER BY available_at, id) AS nth
                FROM (
                    SELECT row.*, running.n, running.room, running.probing, running.seat, running.lane_bytes
                    FROM (SELECT * FROM running ORDER BY n) running
                    CROSS JOIN LATERAL (
                        SELECT o.id, o.ctid, o.lane, o.observed, o.available_at,
                               o.attempt_count > 0 AND NOT running.probing AS again,
                               -- An array holds its element unpacked: the size of what is compressed, for a thirtieth
                               -- of what its text takes. An error stands in the body twice.
                               coalesce(CASE WHEN pg_column_compression(o.document) IS NULL THEN pg_column_size(o.document)
                                             ELSE pg_column_size(ARRAY[o.document]) END, 0)::bigint
                               * CASE o.to_state WHEN 'failed' THEN 2 ELSE 1 END
                               + coalesce(CASE WHEN pg_column_compression(o.context) IS NULL THEN pg_column_size(o.context)
                                               ELSE pg_column_size(ARRAY[o.context]) END, 0) AS bytes
                        FROM taskbell.outbox o
                        WHERE o.lane = running.lane AND o.account_id = running.account_id
                          AND o.available_at >= coalesce(running.since, '-infinity') AND o.available_at <= now()
                          AND (o.lease_expires_at IS NULL OR o.lease_expires_at <= now())
                          AND (o.retry_until IS NULL OR o.retry_until > now())
                          AND ($8::bigint > 0 OR o.attempt_count = 0 OR running.probing)
                        ORDER BY o.available_at, o.id
                        LIMIT running.room FOR UPDATE SKIP LOCKED
                    ) row
                    LIMIT $4::bigint
                ) taken
            ) ranked
        ) fitted
    ) drawn
), visited AS (
    -- How far the walk came: to the lane that took the last of the room, or to its end. Whether some place
    -- gave all that it had room for.
    SELECT NOT full_up AND (SELECT count(*) FROM walk) < $9::bigint AS all, w.lane, w.account_id, more,
           (SELECT taskbell.recorded()) AS recorded
    FROM (
        SELECT coalesce(sum(rows) >= $4::bigint OR sum(fitting) < sum(rows), false) AS full_up,
               max(n) FILTER (WHERE fitting > 0) AS n, coalesce(bool_or(rows >= room) OR sum(fitting) < sum(rows), false) AS more
        FROM (
            SELECT n, min(room) AS room, count(*) AS rows, count(*) FILTER (WHERE fits) AS fitting
            FROM due GROUP BY n
        ) place
    ) taken
    -- Full up by what could not be taken: to its end.
    JOIN walk w ON w.n = coalesce(CASE WHEN full_up THEN taken.n END, (SELECT count(*) FROM walk))

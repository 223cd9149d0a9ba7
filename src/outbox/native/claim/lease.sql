-- Takes what fits of the rows that are due.
-- $1 lease token, $2 lease seconds, $3 horizon seconds
), claimed AS (
    UPDATE taskbell.outbox o
    SET state = 'in_flight', lease_token = $1, observed = true, attempt_count = o.attempt_count + 1,
        lease_expires_at = now() + $2::float8 * interval '1 second',
        first_attempt_at = coalesce(o.first_attempt_at, now()),
        retry_until = coalesce(o.retry_until, now() + $3::float8 * interval '1 second')
    -- By its place. One that moved between our snapshot and the lock is left for the next claim.
    FROM due WHERE o.ctid = due.ctid AND due.fits
    RETURNING o.*, due.observed AS seen, due.probing

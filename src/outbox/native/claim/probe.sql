), probed AS (
    -- Nobody else probes before this one's lease is over.
    UPDATE taskbell.circuit c SET probing = true, closed_until = now() + $2::float8 * interval '1 second'
    FROM claimed k WHERE k.probing AND c.lane = k.lane AND c.account_id = k.account_id

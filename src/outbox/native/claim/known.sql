-- At places that are known. Probes are left to the walk.
-- $14 lanes, $15 accounts there, $16 the due time of the first row that matters (null: any)
WITH walk AS (
    SELECT p.lane, p.account_id, p.since, p.n
    FROM unnest($14::text[], $15::text[], $16::timestamptz[]) WITH ORDINALITY AS p(lane, account_id, since, n)
), probe AS (
    SELECT NULL::text AS lane, NULL::text AS account_id WHERE false

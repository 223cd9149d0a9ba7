-- At places that are known. Probes are left to the walk.
-- $13 lanes, $14 accounts there, $15 the due time of the first row that matters (null: any)
WITH walk AS (
    SELECT p.lane, p.account_id, p.since, p.n
    FROM unnest($13::text[], $14::text[], $15::timestamptz[]) WITH ORDINALITY AS p(lane, account_id, since, n)
), probe AS (
    SELECT NULL::text AS lane, NULL::text AS account_id WHERE false

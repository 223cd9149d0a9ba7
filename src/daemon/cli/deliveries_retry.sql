-- One batch of dead letters, sent again or only shown; with the number of each, and when the one after it is due.
SELECT to_jsonb(d), d.delivery_id, d.next_attempt_at + 1 / $6::float8 * interval '1 second'
FROM taskbell.retry_deliveries($1, $2, $3, $4, $5 * interval '1 second', $6, $7, $8, $9, $10, coalesce($11, now())) d

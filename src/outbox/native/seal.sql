-- Puts sealed secrets in the place of plain ones, or of those that an older key sealed.
-- $1 watch ids, $2 task ids, $3 ciphertexts, $4 nonces, $5 the key's id
UPDATE taskbell.registration r
SET token = NULL, credentials = NULL, sealed = s.sealed, sealed_nonce = s.nonce, sealed_with = $5
FROM unnest($1::smallint[], $2::text[], $3::bytea[], $4::bytea[]) AS s(watch_id, task_id, sealed, nonce)
-- An array of one: see acknowledge.sql.
WHERE r.watch_id = s.watch_id AND r.task_id = ANY (ARRAY[s.task_id])

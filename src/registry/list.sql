-- One page of an account's tasks, by keyset.
-- $1 account, $2 states, $3 types (empty: any), $4 created from, $5 created before (null: any),
-- $6 sort value and $7 id of the last task of the page before (null: the first page), $8 rows
SELECT task_id, account_id, state, task_type, progress, result, error, request_context, created_at, updated_at
FROM decisioning_tasks
WHERE account_id = $1
  AND (cardinality($2::text[]) = 0 OR state = ANY ($2))
  AND (cardinality($3::text[]) = 0 OR task_type = ANY ($3))
  AND ($4::float8 IS NULL OR created_at >= $4)
  AND ($5::float8 IS NULL OR created_at < $5)
  AND ($6::float8 IS NULL OR (/*sort*/ created_at, task_id) /*compare*/ < ($6, $7::text))
ORDER BY /*sort*/ created_at /*direction*/ DESC, task_id /*direction*/ DESC
LIMIT $8

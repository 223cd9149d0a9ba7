-- What the daemon needs, and of that what this role lacks: the words of a GRANT each.
-- $1 the SDK's outbox, null where it is not served; $2 whether tasks are failed by policy
WITH needed (kind, object, privilege) AS (
    SELECT 'TABLE', c.oid, p
    FROM (VALUES ('outbox', '{SELECT,UPDATE,DELETE}'), ('registration', '{SELECT,UPDATE,DELETE}'),
                 ('transition', '{SELECT,INSERT}'), ('attempt', '{SELECT,INSERT}'),
                 ('circuit', '{SELECT,INSERT,UPDATE,DELETE}'), ('overdue', '{SELECT,INSERT,DELETE}'),
                 ('task_type', '{SELECT}'), ('watched_table', '{SELECT}'), ('schema_version', '{SELECT}'))
         AS t(name, privileges)
    -- Not by to_regclass, which wants USAGE on the schema.
    JOIN pg_class c ON c.relname = t.name JOIN pg_namespace s ON s.oid = c.relnamespace AND s.nspname = 'taskbell',
    unnest(t.privileges::text[]) AS p
    UNION ALL
    SELECT 'FUNCTION', p.oid, 'EXECUTE'
    FROM pg_proc p
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'taskbell')
      AND p.proname IN ('create_partitions', 'drop_partitions', 'heal_circuits', 'trip_circuits', 'open_condition', 'lane_of',
                        'shown_url', 'redacted_url', 'bell_of', 'recorded')
    UNION ALL
    SELECT 'SCHEMA', oid, 'USAGE' FROM pg_namespace WHERE nspname = 'taskbell'
    UNION ALL
    SELECT 'TABLE', to_regclass($1)::oid, p FROM unnest(ARRAY['SELECT', 'UPDATE']) AS p
    UNION ALL
    SELECT 'TABLE', to_regclass('decisioning_tasks')::oid, 'UPDATE' WHERE $2::boolean
)
SELECT string_agg(n.privilege, ', ' ORDER BY n.privilege),
       CASE n.kind WHEN 'TABLE' THEN n.object::regclass::text WHEN 'FUNCTION' THEN 'FUNCTION ' || n.object::regprocedure
                   ELSE 'SCHEMA ' || n.object::regnamespace END
FROM needed n
WHERE n.object IS NOT NULL AND NOT CASE n.kind
    WHEN 'TABLE' THEN has_table_privilege(n.object, n.privilege)
    WHEN 'FUNCTION' THEN has_function_privilege(n.object, n.privilege)
    ELSE has_schema_privilege(n.object, n.privilege) END
GROUP BY n.kind, n.object
ORDER BY 2

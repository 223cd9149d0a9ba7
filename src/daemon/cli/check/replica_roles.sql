-- For whom triggers do not fire: a role, a database, or one in the other.
SELECT concat_ws(' in ', nullif(s.setrole, 0)::regrole::text, d.datname)
FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE 'session_replication_role=replica' = ANY (s.setconfig) AND (d.datname IS NULL OR d.datname = current_database())

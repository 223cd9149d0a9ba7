-- Who replicates from here, by a slot or without: its slot, whether it is connected, how old the
-- rows are that it keeps from vacuum (in transactions, null where it keeps none), and how much WAL
-- it keeps on the disk.
SELECT s.slot_name::text, NULL, s.active, age(s.xmin)::bigint,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint END
FROM pg_replication_slots s
UNION ALL
SELECT NULL, r.application_name, true, age(r.backend_xmin)::bigint, NULL
FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL
ORDER BY 1, 2

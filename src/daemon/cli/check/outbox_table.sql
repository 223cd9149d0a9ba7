-- The hot table: live and dead rows as autovacuum counts them, bytes with indexes, seconds since
-- it was last vacuumed (null: never), and whether autovacuum comes at all.
SELECT s.n_live_tup, s.n_dead_tup, pg_total_relation_size(c.oid),
       extract(epoch FROM now() - greatest(s.last_autovacuum, s.last_vacuum))::float8,
       current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean
           AND coalesce((SELECT o.option_value::boolean FROM pg_options_to_table(c.reloptions) o
                         WHERE o.option_name = 'autovacuum_enabled'), true)
FROM pg_class c JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.oid = 'taskbell.outbox'::regclass

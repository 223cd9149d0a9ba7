-- The server as a session of ours sees it.
SELECT current_setting('server_version'), current_setting('server_version_num')::integer, current_user::text,
       pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,
       extract(epoch FROM clock_timestamp())::float8, current_setting('default_transaction_isolation'),
       current_setting('fsync')::boolean, current_setting('statement_timeout') <> '0'
           AND current_setting('plan_cache_mode') = 'force_generic_plan'

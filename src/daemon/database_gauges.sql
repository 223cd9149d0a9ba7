-- How full the notification queue is, and the age of the oldest transaction.
SELECT pg_notification_queue_usage(),
       coalesce((SELECT extract(epoch FROM now() - min(xact_start)) FROM pg_stat_activity
                 WHERE backend_xmin IS NOT NULL), 0)::float8

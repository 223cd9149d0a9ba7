-- Watched tables: how many of our triggers each should have and has, enabled, and its index.
SELECT w.relation::oid IN (SELECT oid FROM pg_class), w.relation::text, w.profile, w.doorbell,
       CASE WHEN w.profile <> 'adcp-python-outbox' OR w.doorbell THEN 1 ELSE 0 END,
       (SELECT count(*)::integer FROM pg_trigger t
        WHERE t.tgrelid = w.relation AND t.tgenabled IN ('O', 'A') AND t.tgname IN ('taskbell_record', 'taskbell_doorbell')),
       (SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = w.relation AND c.relname = 'taskbell_open_' || w.watch_id)
FROM taskbell.watched_table w
ORDER BY w.watch_id

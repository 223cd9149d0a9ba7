-- Watched tables, and how many of our three triggers each has enabled.
SELECT w.relation::text, count(t.oid)
FROM taskbell.watched_table w
LEFT JOIN pg_trigger t ON t.tgrelid = w.relation AND t.tgenabled IN ('O', 'A')
     AND t.tgname IN ('taskbell_record_insert', 'taskbell_record_update', 'taskbell_terminal_is_final')
GROUP BY 1 ORDER BY 1

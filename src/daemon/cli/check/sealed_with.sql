-- Registrations with secrets, by the key that sealed them; null where they are plain.
SELECT sealed_with, count(*)
FROM taskbell.registration
WHERE sealed IS NOT NULL OR token IS NOT NULL OR credentials IS NOT NULL
GROUP BY 1 ORDER BY 1

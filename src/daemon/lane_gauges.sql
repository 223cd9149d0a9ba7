-- Circuits by what they do.
SELECT count(*) FILTER (WHERE closed_until IS NULL AND recovered IS NULL),
       count(*) FILTER (WHERE closed_until IS NOT NULL AND NOT probing),
       count(*) FILTER (WHERE probing),
       count(*) FILTER (WHERE recovered IS NOT NULL)
FROM taskbell.circuit

-- All that our own tables know of one task: state changes, registration, webhooks with attempts.
-- No secrets and no documents; URLs as they may be shown. Spans are seconds from now.
-- $1 watched table, $2 task id
SELECT jsonb_build_object(
    'timeline', coalesce((
        SELECT jsonb_agg(jsonb_build_object('at', t.occurred_at, 'from', t.from_state, 'to', t.to_state)
                         ORDER BY t.transition_id)
        FROM taskbell.timeline t WHERE t.watch_id = $1 AND t.task_id = $2), '[]'),
    'registration', (
        SELECT jsonb_build_object('scheme', coalesce(r.scheme, 'RFC 9421'), 'signing_scope', r.signing_scope,
                                  'url', taskbell.shown_url(r.url), 'operation_id', r.operation_id,
                                  'states', r.states, 'registered_at', r.registered_at)
        FROM taskbell.registration r WHERE r.watch_id = $1 AND r.task_id = $2),
    'deliveries', coalesce((
        SELECT jsonb_agg(to_jsonb(d) || jsonb_build_object(
            'served', true,
            'next_in', extract(epoch FROM d.next_attempt_at - now()),
            'horizon_in', extract(epoch FROM d.retry_until - now()),
            'circuit', (
                SELECT jsonb_build_object('closed_until', c.closed_until, 'probing', c.probing, 'failures', c.failures,
                                          'recovered', c.recovered, 'last_reason', c.last_reason,
                                          'opens_in', extract(epoch FROM c.closed_until - now()))
                FROM taskbell.circuit c WHERE c.lane = d.lane AND c.account_id = coalesce(d.account_id, '')),
            'attempts', coalesce((
                SELECT jsonb_agg(jsonb_build_object('attempt', a.attempt, 'started_at', a.started_at,
                    'duration_ms', a.duration_ms, 'status', a.status, 'reason', a.reason, 'verdict', a.verdict)
                    ORDER BY a.started_at)
                FROM taskbell.attempt a WHERE a.source = 'native' AND a.outbox_id = d.delivery_id), '[]'))
            ORDER BY d.delivery_id)
        FROM taskbell.delivery d WHERE d.watch_id = $1 AND d.task_id = $2), '[]'))

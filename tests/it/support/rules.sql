-- The rules of taskbell.outbox, which in production no insert of a seller pays for.
ALTER TABLE taskbell.outbox
    ADD CONSTRAINT known_state CHECK (state IN ('pending', 'in_flight', 'expired', 'invalid')),
    ADD CONSTRAINT no_negative_count CHECK (attempt_count >= 0),
    ADD CONSTRAINT lane_and_key CHECK ((lane IS NULL) = (idempotency_key IS NULL)),
    ADD CONSTRAINT in_flight_under_a_lease CHECK ((state = 'in_flight') = (lease_token IS NOT NULL)
                                                  AND (state = 'in_flight') = (lease_expires_at IS NOT NULL)),
    ADD CONSTRAINT dead_is_never_due CHECK ((state IN ('expired', 'invalid')) = (available_at IS NULL)),
    ADD CONSTRAINT horizon_from_first_attempt CHECK ((first_attempt_at IS NULL) = (retry_until IS NULL)),
    ADD CONSTRAINT dead_with_a_reason CHECK (state NOT IN ('expired', 'invalid') OR last_reason IS NOT NULL);

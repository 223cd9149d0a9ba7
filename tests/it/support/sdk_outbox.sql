-- The outbox of the AdCP Python SDK 9.2.0, as its create_schema makes it.
CREATE TABLE adcp_task_webhook_outbox (
    id                    bigserial PRIMARY KEY,
    task_id               text COLLATE "C" NOT NULL UNIQUE,
    account_id            text COLLATE "C" NOT NULL,
    task_type             text NOT NULL,
    terminal_status       text NOT NULL CHECK (terminal_status IN ('completed', 'failed')),
    url                   text NOT NULL,
    operation_id          text NOT NULL,
    idempotency_key       text COLLATE "C" NOT NULL UNIQUE,
    signing_scope_id      text COLLATE "C",
    encrypted_body        bytea NOT NULL,
    envelope_nonce        bytea NOT NULL CHECK (octet_length(envelope_nonce) = 12),
    state                 text NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'in_flight', 'delivered', 'expired', 'invalid')),
    attempt_count         integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    available_at          timestamptz NOT NULL DEFAULT now(),
    lease_token           text COLLATE "C",
    lease_expires_at      timestamptz,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    first_attempt_at      timestamptz,
    retry_until           timestamptz,
    retry_horizon_seconds integer NOT NULL CHECK (retry_horizon_seconds BETWEEN 86400 AND 604800),
    delivered_at          timestamptz,
    last_http_status      integer,
    last_error            text,
    CHECK ((first_attempt_at IS NULL) = (retry_until IS NULL)),
    CHECK (retry_until IS NULL OR retry_until > first_attempt_at)
);
CREATE INDEX adcp_task_webhook_outbox_work_idx ON adcp_task_webhook_outbox (available_at, id)
    WHERE state IN ('pending', 'in_flight');
CREATE INDEX adcp_task_webhook_outbox_retry_until_idx ON adcp_task_webhook_outbox (retry_until);

# The image: the binary, glibc, trusted certificates, and nothing to log in with.

FROM rust:1.95-bookworm AS build
# `otlp` sends the spans of attempts to a collector.
ARG FEATURES=""
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --bin taskbell --features "$FEATURES"

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/taskbell /usr/bin/taskbell
# Numeric, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /
# Scrapes and probes come from outside the container. Never publish this port to the internet.
ENV TASKBELL_ADMIN__LISTEN=0.0.0.0:9464
EXPOSE 9464
# Docker's own; Kubernetes has probes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["/usr/bin/taskbell", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/taskbell"]
CMD ["run"]

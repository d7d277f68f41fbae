# The image of r8limiter: one static binary, no shell, not root.
#
# Built by BuildKit for any platform (docker buildx build --platform
# linux/amd64,linux/arm64 .): the compiler runs on the machine's own platform
# and crosses over, nothing is emulated. Built as well by the classic builder
# (Docker 20.10), hence no syntax line, no heredoc, no mount. It knows none of
# the platform arguments: BUILDPLATFORM falls back to "linux" on its own
# architecture, empty TARGETOS and TARGETARCH to the compiler's. They get no
# default by ARG, which would beat BuildKit's own values.
FROM --platform=${BUILDPLATFORM:-linux} golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /r8limiter .

FROM scratch
ARG VERSION=dev
ARG REVISION=
LABEL org.opencontainers.image.title="r8limiter" \
      org.opencontainers.image.description="Rate-limiting reverse proxy and API gateway" \
      org.opencontainers.image.source="https://github.com/r8limiter/r8limiter" \
      org.opencontainers.image.documentation="https://github.com/r8limiter/r8limiter#readme" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The roots that TLS to Redis and to upstreams is checked against.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /r8limiter /r8limiter
COPY LICENSE /LICENSE
COPY deploy/docker/config.yaml /etc/r8limiter/config.yaml
ENV R8LIMITER_CONFIG=/etc/r8limiter/config.yaml
USER 65532:65532
EXPOSE 8080 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s CMD ["/r8limiter", "health"]
ENTRYPOINT ["/r8limiter"]

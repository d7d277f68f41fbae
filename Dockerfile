FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /r8limiter .

FROM scratch
COPY --from=build /r8limiter /r8limiter
COPY deploy/docker/config.yaml /etc/r8limiter/config.yaml
ENV R8LIMITER_CONFIG=/etc/r8limiter/config.yaml
USER 65532:65532
EXPOSE 8080 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s CMD ["/r8limiter", "health"]
ENTRYPOINT ["/r8limiter"]

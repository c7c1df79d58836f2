# The program is built outside, statically, since nothing else is in the image:
#
#   CGO_ENABLED=0 go build -o dist/handoverd ./cmd/handoverd
#   docker build -t handoverd:dev .
#
# An update is a second container that takes over from the first one. Both
# need the same network namespace and the same directory for the control
# socket:
#
#   docker run -d --name blue  --network host -v handoverd:/run/handoverd handoverd:1 serve
#   docker run -d --name green --network host -v handoverd:/run/handoverd handoverd:2 takeover
#
# Blue ends by itself, with exit code 0, when its last request is answered.

# A directory that belongs to the user below, made without a shell: a new
# named volume that is mounted there gets its owner from it.
FROM scratch AS directories
WORKDIR /directories/handoverd

FROM scratch
LABEL org.opencontainers.image.title="handoverd" \
      org.opencontainers.image.description="Serves, and hands its listening sockets over to the next version"
COPY --from=directories --chown=65532:65532 /directories/ /run/
COPY dist/handoverd /handoverd
ENV HANDOVERD_SOCKET=/run/handoverd/handoverd.sock
EXPOSE 8080
# Nobody in particular. Both containers need the same user; with --user 0:0
# they may listen on ports below 1024 of the host.
USER 65532:65532
STOPSIGNAL SIGTERM
# Healthy is whoever serves: not one that has drained and is parked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/handoverd", "health", "--serving"]
ENTRYPOINT ["/handoverd"]
CMD ["serve"]

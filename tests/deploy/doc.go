// Package deploy tests what is in the directory deploy, with what operators
// use: docker compose and the container engine, systemd, and the types of the
// Kubernetes API. There is nothing in it to import.
//
// It is a module of its own, since those types are heavy.
package deploy

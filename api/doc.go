// Package api is the border between Drover's processes: conversions between
// the domain's values and the generated messages of droverv1, the one error
// shape, the clients and what every HTTP server of the installation has in
// common (roles, keepalive, limits).
//
// It leaves to others what a call does: package server implements
// DroverService, package agent AgentService and PeerService. The definitions
// are in proto/; generate.sh makes droverv1 from them.
//
// Handlers return drover.Error and clients receive drover.Error: the
// interceptors of HandlerOptions and of the client constructors carry it over
// the wire.
package api

// Package server is the part of Drover that knows every host: it observes the
// inventory through the agents, checks a move from both ends, has it carried
// out by package executor, measures it from a client's side, and answers
// operators over the API.
//
//	operators ── DroverService ──▶ Server ── Watch, Check…, Run, Probe… ──▶ agents
//	                                 │
//	                     store.Inventory, store.Journal
//
// It never carries guest bytes. What a step does is executor's, how it reaches
// a hypervisor the agent's, where state is kept the store's. Whether this
// server may lead is asked in one place (Deps.Lead), since one server leads
// alone today.
package server

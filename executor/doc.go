// Package executor carries moves out: it walks a method's step table (live,
// warm, cold) as package saga decides, asks agents for each step's action, and
// journals before and after each.
//
// An executor may die at any moment. The next one takes its unfinished moves
// up with Resume, under a higher generation, and each goes on from its journal
// or is undone: actions are named by move and step, so asking for one again
// finds it.
//
//	        Start / Resume
//	             │
//	pending ─▶ queue (per link) ─▶ step, step, … pivot … step ─▶ done
//	                                   │ failed or canceled
//	                                   └──▶ undo, undo, … ────▶ undone
//
// It decides nothing about methods, forecasts or budgets, observes no host,
// and carries no guest bytes. How a step reaches a host is the Agents
// contract's matter, measuring from a client's side the Observer's; moves are
// kept in a store.Journal.
package executor
